"""What a training log tells: rows -> signals -> symptoms -> findings -> report. No torch.

``logs`` reads rows, ``signals`` gives their values one name each, the symptoms of ``optimisation``,
``policy`` and ``reward`` test these by their ``trends``, ``diagnosis`` raises findings, and
``report`` prints them.
"""
