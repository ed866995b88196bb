"""mTLS cases: who may connect to whom, with which flags and texts. See conformance/tls/cases.yaml."""
