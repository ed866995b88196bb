"""Looking into a running process over HTTP: what is configured, what happens, and the directory by which processes are found."""
