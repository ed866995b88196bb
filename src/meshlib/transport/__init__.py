"""What moves bytes. A transport decides nothing: it carries out the engine's actions and reports events."""
