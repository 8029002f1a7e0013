"""Takes one job after the other out of the table. Any number of these may run: each locks the row that it works on."""

import time

from sqlalchemy import select

from model import Job, open_sessions

PAUSE = 0.5  # seconds between two looks at an empty queue


def work(sessions):
    """Do the oldest job; whether there was one."""
    with sessions.begin() as session:
        waiting = select(Job).where(Job.words.is_(None)).order_by(Job.id).limit(1).with_for_update(skip_locked=True)
        job = session.scalar(waiting)
        if job is None:
            return False
        job.words = len(job.text.split())
    print(f"job {job.id}: {job.words} words", flush=True)
    return True


def main():
    sessions = open_sessions(1)
    while True:
        if not work(sessions):
            time.sleep(PAUSE)


if __name__ == "__main__":
    main()
