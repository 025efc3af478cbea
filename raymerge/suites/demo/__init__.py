"""The embedded demo suite: a procedural world of 32 x 32 images, a tiny CLIP pre-trained on it, 20 fine-tuned experts.

Nothing is downloaded: everything is rendered and trained from a seed. The files are, in reading order:

    concepts   what there is to see: families of classes, colours, captions      stdlib only
    styles     how it is photographed: the pre-training style and its shifts     stdlib only
    recipe     the numbers of the training and the 20 tasks                      stdlib only
    fields     signed distance fields; glyphs, icons, figures: the drawings made of them
    world      labels -> images
    splits     the train, val and test images of a task
    clip       the CLIP model, its word tokenizer, its zero-shot heads
    training   contrastive pre-training and fine-tuning; muon: an optimizer
    prepare    the stages which write the suite to disk
"""
