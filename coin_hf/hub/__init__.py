"""The Hub or a folder: what is fetched and pinned, and what lies where in a repository."""
