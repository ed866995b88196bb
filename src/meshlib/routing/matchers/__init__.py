"""Matchers: one module for each kind, each with a function that compiles the configuration into a predicate."""
