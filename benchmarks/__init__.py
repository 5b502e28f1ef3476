"""How fast the engine is, beside a program that does the same work without one. See README.md."""
