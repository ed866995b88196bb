"""The parity harness: the same resources and the same traffic through a real Envoy and through meshlib."""
