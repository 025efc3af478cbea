"""The embedded demo suite: a procedural world of 32 x 32 images, a tiny CLIP pre-trained on it, 20 fine-tuned experts.

Nothing is downloaded: everything is drawn and trained from a seed. The files, in reading order:

    concepts     what there is to see: families of classes, colours, captions     stdlib only
    styles       how it is photographed: the pre-training style and its shifts    stdlib only
    recipe       the numbers of the training, the 20 tasks, the content address   stdlib only
    fields       signed distance fields, the material of drawings
    glyphs       digits and letters; icons: faces, weather, card symbols; figures: all that is drawn from one figure
    masks        where an object is; draws: random values per image; world: labels -> images
    splits       the train, val and test images of a task; web: the pre-training images and captions
    clip         the CLIP model, its word tokenizer, its zero-shot heads
    training     contrastive pre-training and fine-tuning; muon: an optimizer; determinism: equal bits
    prepare      the stages which write the suite to disk
"""
