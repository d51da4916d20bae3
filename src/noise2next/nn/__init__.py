"""Network parts that know no schedule and no data."""
