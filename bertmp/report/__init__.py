"""HTML pages: the page, its charts, its styles."""
