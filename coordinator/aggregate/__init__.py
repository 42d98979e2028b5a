"""What several experts' views of one answer come to together: pure maths, numpy only."""
