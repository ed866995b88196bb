"""Who this process is, whom it trusts, and how both change while it runs: SPIFFE identities, TLS contexts, verification."""
