/* SPDX-License-Identifier: Apache-2.0 */
/* Connections to the daemon, and what is to be known about it. */
#ifndef SAMEWIRE_CONNECTION_H
#define SAMEWIRE_CONNECTION_H

#include "http.h"

#define TIMEOUT_S 120

/* host:port, to be freed; NULL = no memory. */
char *daemon_address(void);
/* The token, to be freed; NULL = none is given. */
char *daemon_token(void);

/* A connection that was kept, or a new one; or NO_SOCKET, and the answer says why. */
socket_t connection_take(const char *address, struct answer *answer);
socket_t connection_new(const char *address, struct answer *answer);
/* Keeps a connection for the next call, or closes it. */
void connection_keep(socket_t s, const char *address);

/* Makes an answer of why there is none. */
void fail(struct answer *answer, const char *format, ...);

#endif
