"""Where images come from: registries over HTTP, and OCI layout folders."""
