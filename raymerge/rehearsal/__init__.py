"""The miniature world of `raymerge rehearse`: raw datasets and published checkpoints, small and made up."""
