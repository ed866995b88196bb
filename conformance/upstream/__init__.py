"""Upstreams that do what a case tells them, misbehaviour included."""
