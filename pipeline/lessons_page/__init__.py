"""The page of lessons: idea, equations, code, graph and cost of each."""
