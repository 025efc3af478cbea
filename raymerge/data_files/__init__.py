"""The raw datasets of a suite as files: getting them, checking them, and caching their images."""
