"""Files on local paths and URLs, finished files moved into place, leases, heartbeats, progress."""
