"""The coded repository on disk and on the Hub, and the files beside its weights."""
