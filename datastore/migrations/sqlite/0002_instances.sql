-- Which of the processes of one name a member is. Rows of before are nobody's: whoever comes waits until the lease that
-- they may stand for is over.
ALTER TABLE members ADD COLUMN instance TEXT NOT NULL DEFAULT '';
