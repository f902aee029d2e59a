"""Options chosen without being asked: within a budget of time, or of few rows."""
