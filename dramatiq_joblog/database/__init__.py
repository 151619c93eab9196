"""What differs between SQLite, PostgreSQL and MySQL; knows no job."""
