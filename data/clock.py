"""Minutes since midnight and their ``HH:MM``."""

DAY = 24 * 60

#: ``HH:MM`` of every minute of the day, and back. A look-up instead of a conversion: only these
#: 1,440 ASCII strings are times, so no other digits, signs or blanks can pass for one.
CLOCK = tuple(f"{minute // 60:02d}:{minute % 60:02d}" for minute in range(DAY))
MINUTE = {text: minute for minute, text in enumerate(CLOCK)}
