"""What a training log tells: rows -> signals -> symptoms -> findings -> report. No torch.

``reading`` reads rows, ``signals`` gives their values one name each, symptoms (``optimisation``,
``policy``, ``reward``) test these by their ``trends``, ``diagnosis`` raises findings, ``logs``
examines a whole log, and ``report`` prints it.
"""
