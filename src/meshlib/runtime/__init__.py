"""What the rest of meshlib runs on: clock, random source, regular expressions, threads, fork."""
