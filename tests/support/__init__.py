"""What several rooms of the test suite share."""
