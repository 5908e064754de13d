"""OCI images: from a registry or an archive to one read-only block image per manifest."""
