"""Volume -> what the network sees."""
