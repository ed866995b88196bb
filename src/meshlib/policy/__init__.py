"""Timeouts, retries, limits and breakers as pure state machines: time and randomness are arguments."""
