"""Archives -> store: index, check, canonicalise, write; every input accounted for."""
