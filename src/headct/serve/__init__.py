"""Bundle + task head -> answers."""
