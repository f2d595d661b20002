// SPDX-License-Identifier: Apache-2.0
/* http.c - one HTTP request a call, and a stream of lines. */
#include "http.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#ifndef _WIN32
#include <sys/socket.h>
#endif

#include "connection.h"

#define MAX_ANSWER (256u << 20)

static int send_all(socket_t s, const char *data, size_t size)
{
	while (size) {
		int n = (int)send(s, data, size > 1 << 20 ? 1 << 20 : (int)size, 0);

		if (n <= 0)
			return -1;
		data += n;
		size -= (size_t)n;
	}
	return 0;
}

/* The path with everything encoded that has no place in a request line. */
static char *encoded(const char *path)
{
	char *result = malloc(3 * strlen(path) + 1), *to = result;

	for (; result && *path; path++) {
		unsigned char c = (unsigned char)*path;

		if (c <= 0x20 || c >= 0x7f || c == '#' || c == '\\' || c == '"')
			to += sprintf(to, "%%%02X", c);
		else
			*to++ = (char)c;
	}
	if (result)
		*to = 0;
	return result;
}

/* In one piece: of two, the second would wait for the daemon's kernel to acknowledge the first. */
static int send_request(socket_t s, const char *method, const char *path, const char *body)
{
	char *secret = daemon_token(), *target = encoded(path), *text = NULL;
	size_t length = body ? strlen(body) : 0, room;
	int result = -1;

	if (target) {
		room = strlen(method) + strlen(target) + (secret ? strlen(secret) : 0) + length + 200;
		text = malloc(room);
	}
	if (text) {
		snprintf(text, room,
			 "%s %s HTTP/1.1\r\nHost: samewire\r\nAuthorization: Bearer %s\r\n"
			 "Content-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s",
			 method, target, secret ? secret : "", length, body ? body : "");
		result = send_all(s, text, strlen(text));
	}
	free(text);
	free(target);
	free(secret);
	return result;
}

struct head {
	size_t size, length; /* length: of the body; SIZE_MAX = until the connection ends */
	int status, keeps;   /* keeps: the connection can be used again */
};

/* The value of a header field; NULL = there is none. */
static const char *field(const char *line, const char *name)
{
	size_t n = strlen(name);

	while ((line = strstr(line, "\r\n"))) {
		line += 2;
		if (!strncasecmp(line, name, n) && line[n] == ':')
			return line + n + 1 + strspn(line + n + 1, " ");
	}
	return NULL;
}

/* Reads the head of an answer, whose size is 0 until it has all arrived. Returns -1 if it is none. */
static int read_head(char *data, struct head *head)
{
	char *blank = strstr(data, "\r\n\r\n");
	const char *length, *connection;

	if (!blank)
		return 0;
	*blank = 0;
	if (sscanf(data, "HTTP/%*d.%*d %d", &head->status) != 1 || field(data, "Transfer-Encoding"))
		return -1;
	length = field(data, "Content-Length");
	connection = field(data, "Connection");
	head->size = (size_t)(blank + 4 - data);
	head->length = length ? strtoul(length, NULL, 10) : head->status == 204 ? 0 : SIZE_MAX;
	head->keeps = head->length != SIZE_MAX && !(connection && !strncasecmp(connection, "close", 5));
	return 0;
}

/* Makes room for more of an answer. Returns -1 if there is none. */
static int make_room(char **data, size_t used, size_t *room)
{
	char *more;

	if (used + 1 < *room)
		return 0;
	more = *room < MAX_ANSWER ? realloc(*data, 2 * *room) : NULL;
	if (!more)
		return -1;
	*data = more;
	*room *= 2;
	return 0;
}

/* Returns -1 if there is no whole answer, else whether the connection can be used again. */
static int read_answer(socket_t s, struct answer *answer)
{
	struct head head = { 0 };
	size_t room = 1 << 14, used = 0;
	char *data = malloc(room);

	while (data && (!head.size || head.length == SIZE_MAX || used - head.size < head.length)) {
		int n = make_room(&data, used, &room) ? -1 : (int)recv(s, data + used, (int)(room - used - 1), 0);

		if (!n && head.size && head.length == SIZE_MAX)
			break;
		if (n > 0) {
			used += (size_t)n;
			data[used] = 0;
		}
		if (n <= 0 || (!head.size && read_head(data, &head))) {
			free(data);
			data = NULL;
		}
	}
	if (!data)
		return -1;
	answer->status = head.status;
	answer->size = used - head.size;
	memmove(data, data + head.size, answer->size + 1);
	answer->body = data;
	return head.keeps;
}

void http_call(const char *method, const char *path, const char *body, struct answer *answer)
{
	char *address = daemon_address();
	int result = -1;
	socket_t s;

	memset(answer, 0, sizeof(*answer));
	if (!address)
		return;
	s = connection_take(address, answer);
	if (s != NO_SOCKET && !send_request(s, method, path, body))
		result = read_answer(s, answer);
	if (result > 0)
		connection_keep(s, address);
	else if (s != NO_SOCKET)
		socket_close(s);
	if (result < 0 && !answer->body)
		fail(answer, "the samewire daemon hung up, or took over %d s, at %s %s", TIMEOUT_S, method, path);
	free(address);
}

void answer_free(struct answer *answer)
{
	free(answer->body);
	answer->body = NULL;
}

socket_t http_stream(const char *path)
{
	struct answer unused = { 0 };
	char *address = daemon_address();
	socket_t s = address ? connection_new(address, &unused) : NO_SOCKET;

	answer_free(&unused);
	free(address);
	if (s != NO_SOCKET && send_request(s, "GET", path, NULL)) {
		socket_close(s);
		s = NO_SOCKET;
	}
	return s;
}

char *lines_next(struct lines *lines)
{
	for (;;) {
		char *line = lines->buffer + lines->start, *end;
		int n;

		end = lines->buffer ? memchr(line, '\n', lines->used - lines->start) : NULL;
		if (end) {
			lines->start = (size_t)(end - lines->buffer) + 1;
			*end = 0;
			if (end > line && end[-1] == '\r')
				end[-1] = 0;
			if (lines->past_headers)
				return line;
			if (!lines->status && sscanf(line, "HTTP/%*d.%*d %d", &lines->status) != 1)
				return NULL;
			if (!*line)
				lines->past_headers = 1;
			if (lines->past_headers && lines->status != 200)
				return NULL;
			continue;
		}
		if (lines->buffer)
			memmove(lines->buffer, line, lines->used - lines->start);
		lines->used -= lines->start;
		lines->start = 0;
		if (lines->used == lines->room) {
			size_t room = lines->room ? 2 * lines->room : 1 << 14;
			char *more = realloc(lines->buffer, room);

			if (!more)
				return NULL;
			lines->buffer = more;
			lines->room = room;
		}
		n = (int)recv(lines->socket, lines->buffer + lines->used, (int)(lines->room - lines->used), 0);
		if (n <= 0)
			return NULL;
		lines->used += (size_t)n;
	}
}

void lines_free(struct lines *lines)
{
	free(lines->buffer);
	lines->buffer = NULL;
}
