"""What is in an archive and what of it is new: listing, manifest, plan."""
