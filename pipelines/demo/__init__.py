"""The synthetic tissue archive: images that need no permission, for a first try and for tests."""
