"""What is written down.

    serialise   a space as JSON, and back
    versions    schema versions, and how older ones are read
"""
