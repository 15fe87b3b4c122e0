"""Makes pages, tables and pictures of finished runs."""
