"""Measures meshlib beside what it replaces: plain clients, and clients behind one or two Envoys.

`python -m benchmarks` runs everything in one interleaved run; docs/performance.md explains the method and
what each ratio means. Linux only: CPU times come from /proc.
"""
