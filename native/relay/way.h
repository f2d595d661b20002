/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SAMEWIRE_WAY_H
#define SAMEWIRE_WAY_H

#include "relay.h"

/* One direction of a connection. */
struct way {
	struct source *from, *to;
	int pipe[2]; /* bulk only */
	size_t piped;
	char *left; /* what `to` would not take yet */
	size_t left_start, left_end;
	bool bulk, ended, done;
	bool look_behind; /* the end or an urgent byte stands behind the data: no event will tell of it again */
};

void way_start(struct way *way, struct source *from, struct source *to);
void way_end(struct way *way);
/* Moves what can be moved. 0: nothing more now, 1: its turn is over but there is more, -1: the connection is dead. */
int way_pump(struct way *way);
/* The connection is dead. What was said before is passed on as far as it goes, but no end: that would be none in order. */
void way_last_words(struct way *way);
bool way_waits_for_room(const struct way *way);

#endif
