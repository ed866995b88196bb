"""From a cluster to an endpoint: priorities, localities, panic, policies, outlier detection."""
