"""Site profiles: the scanners and protocols of a synthetic hospital."""
