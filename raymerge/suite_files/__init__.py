"""The checkpoints and heads of a suite as files: getting them, checking them, and converting them."""
