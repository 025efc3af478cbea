"""Zero-shot: CLIP before fine-tuning, the floor of every table."""

from raymerge.methods._method import FixedAlpha, Method

METHOD = Method(name="zero-shot", title="Zero-shot", source="arXiv:2103.00020", alpha=FixedAlpha(0.0), kind="zero-shot")
