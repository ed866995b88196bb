"""From a request to a decision: domain search, matchers, weighted choice, rewriting, header edits."""
