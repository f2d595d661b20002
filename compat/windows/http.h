/* SPDX-License-Identifier: Apache-2.0 */
/* One request to the daemon: HTTP over loopback TCP, with a token. */
#ifndef SAMEWIRE_HTTP_H
#define SAMEWIRE_HTTP_H

#include "platform.h"

/* What the daemon said. status 0: it did not; then body says why, in words. */
struct answer {
	int status;
	char *body;
	size_t size;
};

/* path begins with a slash; body may be NULL. Always fills the answer; free it with answer_free(). */
void http_call(const char *method, const char *path, const char *body, struct answer *answer);
void answer_free(struct answer *answer);

/* A stream of lines, for as long as the caller wants: the connection, or NO_SOCKET. */
socket_t http_stream(const char *path);
/* The next line without its end, in a buffer that the stream owns; NULL = it has ended. */
struct lines {
	socket_t socket;
	char *buffer;
	size_t used, start, room;
	int past_headers, status; /* status: HTTP's, once it is known */
};
char *lines_next(struct lines *lines);
void lines_free(struct lines *lines);

#endif
