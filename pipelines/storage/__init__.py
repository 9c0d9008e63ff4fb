"""The only door to files: settings, names, bulk listing and reading, small files, leases.

A place is named by one string everywhere: a local path without scheme, `s3://bucket/key`, or another fsspec URI.
"""
