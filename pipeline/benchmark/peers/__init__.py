"""What a user might write instead of a lesson, to be measured against: the same network, data and steps.

The class `Loop` of each has a constructor like a lesson's, in some with an `option` that names a variant,
`place(chunk)`, and `run(steps)`.
"""
