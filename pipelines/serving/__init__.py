"""One image at a time: the ASGI app, the upload page, the serverless handler."""
