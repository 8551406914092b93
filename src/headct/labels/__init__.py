"""Label tables of public sets and of health records -> one table in one vocabulary."""
