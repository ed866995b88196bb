"""Access logs: one line or record for each call, in Envoy's formats."""
