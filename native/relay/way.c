// SPDX-License-Identifier: Apache-2.0
/*
 * way.c - what one end of a connection sends is brought to the other.
 *
 * Small amounts are copied through one shared buffer: two system calls, no pipe. A way that fills the buffer is bulk
 * and goes through a pipe with splice(2), so that its pages are moved and not copied.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "way.h"

#define COPY_BYTES 16384
#define PIPE_BYTES (1 << 20)
#define SPARE_PIPES 64
#define MAX_PIPES 512 /* what they hold is nobody's but ours: of readers that do not read no more than half a GB */
#define TURNS 16 /* of one way, before others get theirs */

static int pipes[SPARE_PIPES][2];
static unsigned spare_pipes, open_pipes;
static char copy_buffer[COPY_BYTES];

static bool take_pipe(struct way *way)
{
	if (spare_pipes) {
		memcpy(way->pipe, pipes[--spare_pipes], sizeof(way->pipe));
		return true;
	}
	if (open_pipes == MAX_PIPES || pipe2(way->pipe, O_NONBLOCK | O_CLOEXEC)) {
		way->pipe[0] = way->pipe[1] = -1;
		return false;
	}
	open_pipes++;
	fcntl(way->pipe[0], F_SETPIPE_SZ, PIPE_BYTES); /* a smaller pipe works too */
	return true;
}

static void give_pipe(struct way *way)
{
	if (way->pipe[0] < 0)
		return;
	if (!way->piped && spare_pipes < SPARE_PIPES) {
		memcpy(pipes[spare_pipes++], way->pipe, sizeof(way->pipe));
	} else {
		close(way->pipe[0]);
		close(way->pipe[1]);
		open_pipes--;
	}
	way->pipe[0] = way->pipe[1] = -1;
}

void way_start(struct way *way, struct source *from, struct source *to)
{
	way->from = from;
	way->to = to;
	way->pipe[0] = way->pipe[1] = -1;
}

void way_end(struct way *way)
{
	give_pipe(way);
	free(way->left);
}

/* Gives `to` what it has been kept waiting for. 1: all gone, 0: not yet, -1: it is dead. */
static int flush(struct way *way)
{
	while (way->left_start < way->left_end) {
		ssize_t sent = send(way->to->fd, way->left + way->left_start, way->left_end - way->left_start,
				    MSG_NOSIGNAL | MSG_DONTWAIT);

		if (sent < 0)
			return errno == EAGAIN ? 0 : -1;
		way->left_start += sent;
	}
	while (way->piped) {
		ssize_t moved = splice(way->pipe[0], NULL, way->to->fd, NULL, way->piped, SPLICE_F_NONBLOCK | SPLICE_F_MOVE);

		if (moved < 0)
			return errno == EAGAIN ? 0 : -1;
		way->piped -= moved;
	}
	return 1;
}

static int keep(struct way *way, size_t start, size_t length)
{
	if (!way->left && !(way->left = malloc(COPY_BYTES)))
		return -1;
	memcpy(way->left, copy_buffer + start, length);
	way->left_start = 0;
	way->left_end = length;
	return 0;
}

/* Nothing comes for now, and the pipe is empty. Where others may need it, it is theirs. */
static void rest(struct way *way)
{
	if (way->bulk && open_pipes == MAX_PIPES) {
		give_pipe(way);
		way->bulk = false;
	}
}

/* Takes one portion from `from`. 1: there may be more, 0: nothing now, -1: it is dead. Sets ended at the end. */
static int fetch(struct way *way)
{
	ssize_t got, sent;
	bool drained;

	if (way->bulk) {
		got = splice(way->from->fd, NULL, way->pipe[1], NULL, PIPE_BYTES, SPLICE_F_NONBLOCK | SPLICE_F_MOVE);
		if (got > 0) {
			way->piped += got;
			return 1;
		}
	}
	/* splice stops before an urgent byte as if it were the end, or as if nothing were there; recv goes on with it. */
	if (!way->bulk || !got || (errno == EAGAIN && way->look_behind))
		got = recv(way->from->fd, copy_buffer, sizeof(copy_buffer), MSG_DONTWAIT);
	if (got < 0 && errno != EAGAIN)
		return -1;
	if (got < 0) {
		rest(way);
		return 0;
	}
	if (!got) {
		way->ended = true;
		return 1;
	}
	drained = got < (ssize_t)sizeof(copy_buffer);
	way->bulk = way->bulk || (!drained && take_pipe(way));
	sent = send(way->to->fd, copy_buffer, got, MSG_NOSIGNAL | MSG_DONTWAIT);
	if (sent < 0 && errno != EAGAIN)
		return -1;
	if (sent < 0)
		sent = 0;
	if (sent < got && keep(way, sent, got - sent))
		return -1;
	return way->bulk || !drained || way->look_behind; /* more would be a new event */
}

int way_pump(struct way *way)
{
	for (int turn = 0; turn < TURNS; turn++) {
		int step;

		if (way->done)
			return 0;
		step = flush(way);
		if (step <= 0)
			return step;
		if (way->ended) {
			way->done = true;
			shutdown(way->to->fd, SHUT_WR);
			return 0;
		}
		step = fetch(way);
		if (step <= 0)
			return step;
	}
	return 1;
}

void way_last_words(struct way *way)
{
	for (int turn = 0; turn < TURNS && !way->ended; turn++)
		if (flush(way) <= 0 || fetch(way) <= 0)
			break;
	flush(way);
}

bool way_waits_for_room(const struct way *way)
{
	return way->piped || way->left_start < way->left_end;
}
