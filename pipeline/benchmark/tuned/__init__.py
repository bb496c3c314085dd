"""The lessons with everything done for their speed that we know of, to be measured against and for nothing else.

The class `Loop` of each is lesson and loop over the steps in one: a constructor like a lesson's, `place(chunk)`, and
`run(steps)`, which takes at most as many steps as there are batches and returns their losses on the device.
"""
